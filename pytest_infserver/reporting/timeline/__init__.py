"""A run as a picture: `report.html` for people, `trace.json` for Perfetto. Both are made from the record of the run."""
