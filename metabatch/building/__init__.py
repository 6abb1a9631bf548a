"""From a genome, its annotation and base scores to a table of positions: genes, scores, rows, features."""
