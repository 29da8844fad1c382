"""Uploading the exported model to a model hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lit_align.callbacks.export import Export
from lit_align.compat.lightning import callbacks_of, writes_files
from lit_align.errors import without_secrets
from lit_align.locate import HUB_NAME

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables of the environment that may hold the token; the first that is set counts."""
_TRUE = ("1", "ON", "YES", "TRUE")
_OWN = {".gitattributes"}


class HubError(RuntimeError):
    """The model was exported but not uploaded. Raised after everything else of the run is written."""


class HubPush(Callback):
    """Uploads the exported folder with its model card when training ends.

    The token is read from the environment (``HF_TOKEN``) and nowhere else; it is neither stored nor printed. A token
    that is missing, and a repository that has a model already, are reported before the first step. If the upload
    fails, the exported folder stays where it is, and the message says how to upload it by hand.

    Args:
        push: repository, ``owner/name``; it is made if there is none. Leave it out to upload nothing.
        private: whether only its owner sees a repository that is made here.
        revision: branch to upload to, made if there is none; None for the main one.
        existing: ``error`` refuses a repository that holds files; ``update`` adds a commit to it.
    """

    def __init__(
        self,
        push: str | None = None,
        private: bool = True,
        revision: str | None = None,
        existing: Literal["error", "update"] = "error",
    ) -> None:
        self.push = push
        self.private = private
        self.revision = revision
        self.existing = existing
        self._problem = ""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._problem = ""
        if self.push is None or stage != "fit":
            return
        if HUB_NAME.fullmatch(self.push) is None:
            raise ValueError(f"hub.push is {self.push!r}; expected owner/name")
        if _export_of(trainer) is None:
            raise ValueError("hub.push uploads what is exported, but export.form is none; expected merged or adapter")
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
            raise ValueError("hub.push is set, and so is HF_HUB_OFFLINE, with which nothing is uploaded; unset one")
        if token() is None:
            raise ValueError(
                f"hub.push {self.push} needs a token with the right to write: set the environment variable "
                f"{TOKEN_VARIABLES[0]}"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a repository that holds a model, on all ranks; a hub that does not answer may do so at the end."""
        if self.push is None or not writes_files(trainer):
            return
        problem = self._refusal(self.push) if trainer.is_global_zero else ""
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise ValueError(problem)

    def _refusal(self, name: str) -> str:
        try:
            files = set(_api().list_repo_files(name, revision=self.revision))
        except RepositoryNotFoundError:
            return ""
        except _failures() as error:
            rank_zero_warn(f"hub.push: {_reason(error)}; the upload to {name} is tried again when training ends")
            return ""
        if self.existing == "update" or files <= _OWN:
            return ""
        return f"hub.push: {name} exists and holds files; choose another name, or hub.existing: update to add a commit"

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        export = _export_of(trainer)
        if self.push is None or export is None or export.folder is None or not trainer.is_global_zero:
            return
        try:
            address = self._upload(self.push, export.folder, trainer.global_step)
            rank_zero_info(f"uploaded {export.folder} to {address}")
        except _failures() as error:
            by_hand = f"hf upload {self.push} {export.folder}{' --private' if self.private else ''}"
            where = f"nothing is lost: the model is in {export.folder}, and to upload it: {by_hand}"
            self._problem = f"hub.push: {_reason(error)}; {where}"

    def _upload(self, name: str, folder: Path, steps: int) -> str:
        """Upload a folder, and return the address of the repository."""
        api = _api()
        address = api.create_repo(name, private=self.private, exist_ok=True)
        if self.revision is not None:
            api.create_branch(name, branch=self.revision, exist_ok=True)
        message = f"Model after {steps} optimizer steps, exported by lit_align"
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, revision=self.revision)
        return str(address)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        problem, self._problem = self._problem, ""
        if problem:
            raise HubError(problem)


def token() -> str | None:
    """Return the token of the environment; None without one."""
    return next((value for name in TOKEN_VARIABLES if (value := os.environ.get(name, "").strip())), None)


def _api() -> HfApi:
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token())


def _failures() -> tuple[type[Exception], ...]:
    """Return what the client of the hub raises where a request fails: also the errors of its own HTTP client."""
    return (*HfHubHTTPError.__bases__, OSError, ValueError)


def _reason(error: Exception) -> str:
    """Say in one line why a request failed, without the token."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the hub refuses the token of the environment ({status}); it needs the right to write there"
        words = error.server_message or str(error)
        return f"the hub answered {status}: {_line(words)}"
    return f"the hub cannot be reached: {_line(str(error) or type(error).__name__)}"


def _line(words: str) -> str:
    secret = token()
    line = " ".join(words.split())
    return without_secrets(line.replace(secret, "***") if secret else line)[:300]


def _export_of(trainer: Trainer) -> Export | None:
    exports = [callback for callback in callbacks_of(trainer) if isinstance(callback, Export)]
    return next((export for export in exports if export.form != "none"), None)
