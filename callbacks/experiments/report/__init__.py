"""The report of an experiment, made from its result files alone."""
