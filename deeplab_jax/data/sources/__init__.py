"""Raw data sets, one file each: where they come from and how their folders read."""
