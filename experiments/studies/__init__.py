"""One study a file; ``experiments.study.find`` imports them by id."""
