"""Text to token ids and back, in one piece or streamed."""
