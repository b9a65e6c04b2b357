"""What every other room may see: samples, the Task and Stage seams, artifacts, storage, codecs, the preprocess specification."""
