"""Encrypts what runs keep, and stores the large part of it elsewhere. To be copied, see "Growing" in the README."""

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import override

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    ExternalStorage,
    PayloadCodec,
    StorageDriver,
    StorageDriverClaim,
    StorageDriverRetrieveContext,
    StorageDriverStoreContext,
)


class Encryption(PayloadCodec):
    """AES-GCM with one key. What is not encrypted, as in runs from before, is read as it is."""

    ENCODING = b"binary/encrypted"

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @override
    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._encrypted(payload.SerializeToString()) for payload in payloads]

    @override
    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        encrypted = [payload.metadata.get("encoding") == self.ENCODING for payload in payloads]
        return [self._decrypted(p.data) if sealed else p for p, sealed in zip(payloads, encrypted, strict=True)]

    def _encrypted(self, data: bytes) -> Payload:
        nonce = os.urandom(12)  # never twice with one key
        return Payload(metadata={"encoding": self.ENCODING}, data=nonce + self._cipher.encrypt(nonce, data, None))

    def _decrypted(self, data: bytes) -> Payload:
        try:
            return Payload.FromString(self._cipher.decrypt(data[:12], data[12:], None))
        except InvalidTag:
            raise ValueError("a payload was encrypted with another key") from None


class Folder(StorageDriver):
    """Keeps payloads as files in a folder that all workers and clients share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @override
    def name(self) -> str:
        return "folder"

    @override
    async def store(self, context: StorageDriverStoreContext, payloads: Sequence[Payload]) -> list[StorageDriverClaim]:
        return [StorageDriverClaim({"file": await asyncio.to_thread(self._write, payload)}) for payload in payloads]

    @override
    async def retrieve(
        self, context: StorageDriverRetrieveContext, claims: Sequence[StorageDriverClaim]
    ) -> list[Payload]:
        return [await asyncio.to_thread(self._read, claim.claim_data["file"]) for claim in claims]

    def _write(self, payload: Payload) -> str:
        data = payload.SerializeToString()
        name = hashlib.sha256(data).hexdigest()
        half = self._folder / f"{name}.{os.urandom(4).hex()}"
        half.write_bytes(data)
        half.rename(self._folder / name)  # so that nobody reads half a file
        return name

    def _read(self, name: str) -> Payload:
        data = (self._folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise ValueError(f"{name} is not what was stored under that name")
        return Payload.FromString(data)


def data_converter() -> DataConverter:
    """Temporal's, with encryption by `PAYLOAD_KEY`, and files in `PAYLOAD_FOLDER` for what is over 256 KB."""
    key, folder = os.environ.get("PAYLOAD_KEY", ""), os.environ.get("PAYLOAD_FOLDER")
    if not re.fullmatch("[A-Za-z0-9+/]{43}=", key):
        raise ValueError("PAYLOAD_KEY is not 32 bytes in base64")
    return DataConverter(
        payload_codec=Encryption(base64.b64decode(key)),
        # The text of an error is outside of the payloads, unless this moves it in.
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
        external_storage=ExternalStorage(drivers=[Folder(Path(folder))]) if folder else None,
    )
