"""From a prompt to an answer: sampling, generation, and the loaded model that a user holds."""
