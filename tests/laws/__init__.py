"""The seven laws."""
