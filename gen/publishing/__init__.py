"""A finished dataset in the formats that others read: Parquet as the hub has it, and webdataset tars."""
