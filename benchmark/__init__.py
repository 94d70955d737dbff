"""Speed and memory of the model against a plain transcription of the method."""
