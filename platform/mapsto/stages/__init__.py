"""One file per verb; each goes from artifacts to an artifact."""
