"""What can be wrong with a model folder."""


class ModelFolderError(ValueError):
    """A model folder or its config cannot be used; the message names the field and the way out."""
