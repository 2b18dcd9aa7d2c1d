"""Encoders (BERT, RoBERTa, ModernBERT) with a classification head of one output: reward models and pair classifiers."""
