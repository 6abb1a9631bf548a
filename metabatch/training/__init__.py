"""One instance: quantised matrix, folds, boosters, calibration, artefacts."""
