"""What schemathesis should know of the API: a watch is answered until it is told to end, and one error is upstream's own."""

import schemathesis


@schemathesis.hook
def map_query(context, query):
    if query and "watch" in query:
        query["timeoutSeconds"] = "1"
    return query


@schemathesis.hook
def map_body(context, body):
    # Upstream too answers a creation that names a resource version with 500 (ErrResourceVersionSetOnCreate).
    metadata = body.get("metadata") if isinstance(body, dict) else None
    if context.operation.method == "post" and isinstance(metadata, dict):
        if str(metadata.get("resourceVersion")).isdecimal():
            del metadata["resourceVersion"]
    return body
