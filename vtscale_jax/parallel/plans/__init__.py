"""What a run needs on machines that are not here, from its compiled train step."""
