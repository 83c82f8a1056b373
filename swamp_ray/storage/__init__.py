"""What is kept on disk: names of results, artifacts, run directories, metrics and tickets."""
