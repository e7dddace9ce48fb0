"""What a Hugging Face checkpoint holds: configuration, tensors, chat template, and how it is fetched."""
