"""From the address of a webdataset shard to samples."""
