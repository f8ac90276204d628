"""What was measured, and how it is shown: metrics, history, plots and cards."""
