//! The words of a failed call to the API server, for statuses and events.

/// The server's message alone where there is one.
pub fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
