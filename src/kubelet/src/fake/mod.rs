//! Stand-ins for the loop tests: a runtime without processes and an API server without rules.

pub mod api;
pub mod node;
pub mod runtime;
