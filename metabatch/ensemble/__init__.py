"""The bundle people load: consolidation of instances and the estimator."""
