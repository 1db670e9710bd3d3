"""C-Eval, MMLU, AGIEval, Gaokao: the questions and where they come from. Knows no model."""
