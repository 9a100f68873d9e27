"""What can be wrong with a model folder."""

from agent.wire.errors import PerennialError


class ModelFolderError(PerennialError, ValueError):
    """A model folder or its config cannot be used; the message names the field and the way out."""
