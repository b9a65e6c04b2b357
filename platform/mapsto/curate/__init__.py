"""What makes a data set better: quality, duplicates, label errors, automatic labels, review by people."""
