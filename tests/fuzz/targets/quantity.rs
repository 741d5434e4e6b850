//! Quantities.

#![no_main]

use apimachinery::quantity::Quantity;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(quantity) = text.parse::<Quantity>() else { return };
    let written = quantity.canonical();
    let again: Quantity = written.parse().expect("the canonical form is one");
    // A binary number that no power of 1024 divides is written in full, which is read as a decimal one.
    let settled = if text.ends_with('i') { again.canonical() } else { written.clone() };
    let settles = settled.parse::<Quantity>().expect("so is what follows from it").canonical();
    assert_eq!((again.canonical(), settles), (settled.clone(), settled), "{text}");
    assert!(again == quantity, "{text} {written}");
    quantity.value();
    quantity.milli_value();
    quantity.to_f64();
    quantity.plus(&again).canonical();
    quantity.minus(&again).canonical();
    quantity.times(3).canonical();
    quantity.clone().rounded_up(-3).canonical();
});
