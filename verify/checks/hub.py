"""The model hub: offline variables, cache, token, reachability."""

from __future__ import annotations

from verify.process import Facts
from verify.result import (
    Check,
    Context,
    Group,
    Problem,
    Tier,
    Verdict,
    failed,
    passed,
    warned,
)


def _offline(facts: Facts, context: Context) -> Verdict:
    found = facts["set"]
    if not found:
        return passed("no variable switches it off")
    have = ", ".join(f"{name}={value}" for name, value in found.items())
    on = [name for name, value in found.items() if value.upper() in ("1", "ON", "YES", "TRUE")]
    if on and context.options.get("online"):
        return failed("hub.offline", have, "none, as --online asks", variables=" ".join(on))
    return passed(f"{have}: on purpose offline" if on else have)


def _cache(facts: Facts, context: Context) -> Verdict:
    state = "" if facts["exists"] else " (will be made on first use)"
    if facts["error"]:
        return warned(
            "hub.cache", f"{facts['tried']}: {facts['error']}", f"write to {facts['path']}"
        )
    return passed(f"{facts['path']}{state}, writable")


def _token(facts: Facts, context: Context) -> Verdict:
    if facts["where"]:
        return passed(f"there is one, in {facts['where']}; it is not shown or sent")
    return passed("none; only gated and private models need one")


def _reach(facts: Facts, context: Context) -> Verdict:
    if facts["error"]:
        return failed("hub.unreachable", facts["error"], "an answer")
    return passed(f"answered with code {facts['code']} after {facts['seconds']:.1f} s")


def _not_asked(context: Context) -> str:
    return "" if context.options.get("online") else "it was not asked for (--online)"


GROUP = Group(
    "hub",
    "Model hub",
    (
        Check(
            "hub.offline",
            "variables that switch the hub off",
            "With them set, a model that is not cached looks like a lost connection.",
            "hub",
            _offline,
            "hub.offline",
            Tier.QUICK,
        ),
        Check(
            "hub.cache",
            "the cache can be written",
            "Downloads go there.",
            "hub",
            _cache,
            "hub.cache",
            Tier.QUICK,
        ),
        Check(
            "hub.token",
            "a token",
            "Gated models ask for one.",
            "hub",
            _token,
            "hub.gated",
            Tier.QUICK,
        ),
        Check(
            "hub.reach",
            "the hub answers",
            "Models are downloaded from it.",
            "hub",
            _reach,
            "hub.unreachable",
            Tier.QUICK,
            limit=20,
            skip=_not_asked,
        ),
    ),
    (
        Problem(
            "hub.offline",
            ("outgoing traffic has been disabled", "Cannot reach…offline mode is enabled"),
            "The hub is switched off by a variable.",
            "unset {variables}",
        ),
        Problem(
            "hub.unreachable",
            ("We couldn't connect to…and couldn't find them in the cached files",),
            "The hub cannot be reached, or HF_HUB_OFFLINE is set (`hub.offline` says which).",
            "Check network and proxy (HTTPS_PROXY, HF_ENDPOINT), or copy the model here and give "
            "its directory; set HF_HUB_OFFLINE=1 to fail at once",
        ),
        Problem(
            "hub.cache",
            (
                "PermissionError at…when downloading",
                "There was a problem when trying to write in your cache folder",
            ),
            "The directory in which models are cached cannot be written.",
            "export HF_HOME=DIRECTORY, one that you may write to",
        ),
        Problem(
            "hub.gated",
            ("You are trying to access a gated repo.",),
            "The model's owner has to grant access, and the token shows who asks.",
            "Ask for access on the model's page, then set HF_TOKEN, or: "
            "python -c 'import huggingface_hub; huggingface_hub.login()'",
        ),
    ),
)
