"""The executor on Ray: cluster, pool, workers, actors."""
