"""Files that annotation tools write: class lists, lists of images, and names of masks."""
