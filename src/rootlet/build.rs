//! How the executable is linked.
//!
//! At a fixed address, as other container runtimes are: one that may lie anywhere writes its address into more than
//! a megabyte of tables at each start, which every shim would keep for itself, and every container and exec wait for.
//! A release has functions of equal bytes once; that is not worth the time while one develops.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-static");
    println!("cargo::rustc-link-arg-bins=-no-pie");
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
