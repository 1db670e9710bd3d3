"""What answers the questions: our own engine, transformers, APIs; all behind one interface."""
