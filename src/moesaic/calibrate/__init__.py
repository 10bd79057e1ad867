"""What a model does on text: runs it layer by layer and gathers `ExpertStats`."""
