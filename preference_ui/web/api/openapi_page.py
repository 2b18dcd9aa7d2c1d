"""The page that describes the API: plain HTML out of its OpenAPI document. It needs no script, and nothing from
elsewhere."""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

_TEXT = MarkdownIt("commonmark", {"html": False})
_ROOT = "/api/v1"


def openapi_html(document: Mapping[str, Any]) -> str:
    """An OpenAPI 3.1 document as a page: every operation with what it takes and answers, and every model."""
    source = files("preference_ui").joinpath("templates/api.html").read_text("utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    models = document["components"]["schemas"]
    return template.render(
        title=document["info"]["title"], version=document["info"]["version"], root=_ROOT, markdown=_TEXT.render,
        inline=_TEXT.renderInline,
        about=document["info"]["description"], operations=list(_operations(document)),
        models=[{"name": name, "about": one.get("description", ""), "fields": list(_fields(one))}
                for name, one in sorted(models.items())],
    )  # fmt: skip


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            body = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            answer = one["responses"]["200"]["content"]["application/json"]["schema"]
            yield {
                "id": one["operationId"], "method": method.upper(), "path": path, "scope": one["tags"][0],
                "about": one.get("description", one["summary"]), "body": kind_of(body), "answer": kind_of(answer),
                "parameters": [
                    {"name": given["name"], "kind": kind_of(given["schema"]), "required": given.get("required", False),
                     "about": given.get("description", ""), "limits": _limits(given["schema"])}
                    for given in one.get("parameters", [])
                ],
                "curl": _curl(path, method.upper(), has_body=bool(body)),
                "refusals": [(code, told["description"]) for code, told in sorted(one["responses"].items())
                             if code != "200"],
            }  # fmt: skip


def _fields(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, one in model.get("properties", {}).items():
        yield {"name": name, "kind": kind_of(one), "required": name in model.get("required", []),
               "about": one.get("description", ""), "limits": _limits(one)}  # fmt: skip


def kind_of(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words: "list of Vote", "string or null"."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(kind_of, schema["anyOf"])))
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list of {kind_of(schema.get('items', {}))}"
    if schema.get("type") == "object":
        inside = schema.get("additionalProperties")
        return f"object of {kind_of(inside)}" if isinstance(inside, dict) else "object"
    return str(schema.get("format") or schema.get("type") or "anything")


def _limits(schema: Mapping[str, Any]) -> str:
    told = [f"default {json.dumps(schema['default'])}"] if schema.get("default") is not None else []
    for names, words in ((("minimum", "maximum"), ""), (("minItems", "maxItems"), " items"),
                         (("minLength", "maxLength"), " characters")):  # fmt: skip
        low, high = (schema.get(name) for name in names)
        if low is not None or high is not None:
            told.append(f"{'' if low is None else low}–{'' if high is None else high}{words}")
    return ", ".join(told)


def _curl(path: str, method: str, *, has_body: bool) -> str:
    command = f'curl -H "Authorization: Bearer $TOKEN" "$RATERS{_ROOT}{path}"'
    if has_body:
        return f"{command} -H 'Content-Type: application/json' -d @body.json"
    return command if method == "GET" else f"{command} -X {method}"
