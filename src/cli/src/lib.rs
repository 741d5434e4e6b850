//! The command line: what the words and flags are, and how answers are printed. It starts nothing
//! itself; `rootlet` carries the commands out. Start at [`args`].

pub mod access;
pub mod apply;
pub mod args;
pub mod doctor;
pub mod kubeconfig;
pub mod objects;
pub mod page;
pub mod reference;
pub mod report;
pub mod status;
mod suggest;
pub mod trace;
pub mod waterfall;
pub mod why;
