"""From a genome and its annotation to a data set: genes, sequence, base scores, features, rows."""
