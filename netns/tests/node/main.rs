//! The data plane as an unprivileged user sees it.
//!
//! The test binary starts itself again inside a user namespace and a network namespace that plays
//! the host ("inner" tests below); pods are network namespaces with a thread in them. Nothing of
//! the machine's own network is used.

mod clients;
mod egress;
mod fairness;
mod harness;
mod pods;
mod policy;
mod publish;
mod services;
mod takeover;
