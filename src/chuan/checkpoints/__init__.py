"""Model folders and files on disk: finding, reading, writing."""
