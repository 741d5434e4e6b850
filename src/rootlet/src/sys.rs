//! The process's memory: which allocator it comes from. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicBool, Ordering};

use mimalloc::MiMalloc;

/// Roles that serve many requests. The others are short, or many and small, and mimalloc keeps more than they need.
const BUSY: [&[u8]; 2] = [b"daemon-inside", b"bench"];

/// mimalloc in a busy role, else the C library's: that took a fifth to a third of a busy daemon's time.
pub struct Allocator;

static BUSY_ROLE: AtomicBool = AtomicBool::new(false);

#[cfg(not(target_env = "gnu"))]
compile_error!("only glibc gives functions in .init_array what it gives to main");

/// Run before anything is allocated here, as glibc runs such functions: with what `main` gets.
#[used]
#[unsafe(link_section = ".init_array")]
static CHOOSE: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = choose;

extern "C" fn choose(count: c_int, words: *const *const c_char, _: *const *const c_char) {
    if count < 2 {
        return;
    }
    // SAFETY: the kernel gives a process `count` words, each of which ends with a zero.
    let role = unsafe { CStr::from_ptr(*words.add(1)) };
    BUSY_ROLE.store(BUSY.contains(&role.to_bytes()), Ordering::Relaxed);
}

fn is_busy() -> bool {
    BUSY_ROLE.load(Ordering::Relaxed)
}

// SAFETY: both are allocators, and which of them it is never changes once the first memory was asked for.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, here and below.
        unsafe { if is_busy() { MiMalloc.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            if is_busy() { MiMalloc.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) }
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe {
            if is_busy() { MiMalloc.dealloc(place, layout) } else { System.dealloc(place, layout) }
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            if is_busy() {
                MiMalloc.realloc(place, layout, size)
            } else {
                System.realloc(place, layout, size)
            }
        }
    }
}
