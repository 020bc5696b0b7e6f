"""The fixtures `inference_load` and `inference_score`."""
