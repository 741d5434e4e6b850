//! Tests of the project as a whole. The end-to-end suite is in `e2e/`; here are the rules that the
//! source tree keeps.

#[cfg(test)]
mod layering;

#[cfg(test)]
mod messages;
