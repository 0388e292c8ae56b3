"""From raw media to published shards, on Ray Data: curate, recaption, encode."""
