"""Transfer: fine-tuning of the whole network on a task."""
