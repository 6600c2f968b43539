"""From scans on disk to batches in memory: manifest, intake gate, standardisation, cache, pipeline. Knows nothing of models."""
