//! A program that finds a call's answer by halving the range of numbers. The compiler's programs compare one number
//! after another; the kernel runs a filter for every call there is when it is installed, so that each start and exec
//! would take most of a millisecond for it.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// BPF's codes, linux/bpf_common.h: load a word, jump, compare, return.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Where the number is in `struct seccomp_data`.
const NUMBER: u32 = 0;
/// The check of the architecture, which each compiled program begins with.
const HEAD: usize = 3;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This, whatever its arguments are.
    Return(u32),
    /// What the compiled program says.
    Rest,
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// A program that answers as `answers` say, by number, others with `default`; `rest` is the compiled program for those
/// whose arguments count.
pub fn program(answers: &BTreeMap<u32, Answer>, default: u32, rest: &BpfProgram) -> BpfProgram {
    let mut ranges: Vec<(u32, Answer)> = vec![(0, Answer::Return(default))];
    let mut push = |from: u32, answer: Answer| match ranges.last_mut() {
        Some(last) if last.0 == from => last.1 = answer,
        Some(last) if last.1 == answer => {}
        _ => ranges.push((from, answer)),
    };
    for (number, answer) in answers {
        push(*number, *answer);
        if !answers.contains_key(&(number + 1)) {
            push(number + 1, Answer::Return(default));
        }
    }
    let mut tree = halve(&ranges);
    let length = tree.len();
    for (index, step) in tree.iter_mut().enumerate() {
        // Leaves that lead out of the tree jump over what is left of it.
        if step.code == JUMP && step.k == u32::MAX {
            step.k = (length - index - 1) as u32;
        }
    }
    let mut program = rest[..HEAD].to_vec();
    program.push(instruction(LOAD, 0, 0, NUMBER));
    program.extend(tree);
    program.extend_from_slice(&rest[HEAD..]);
    program
}

fn halve(ranges: &[(u32, Answer)]) -> Vec<sock_filter> {
    if let [(_, answer)] = ranges {
        return vec![match answer {
            Answer::Return(value) => instruction(RETURN, 0, 0, *value),
            Answer::Rest => instruction(JUMP, 0, 0, u32::MAX),
        }];
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (left, right) = (halve(low), halve(high));
    let mut steps = match u8::try_from(left.len()) {
        Ok(length) => vec![instruction(JUMP_AT_LEAST, length, 0, high[0].0)],
        // Too far for a comparison to jump.
        Err(_) => vec![
            instruction(JUMP_AT_LEAST, 0, 1, high[0].0),
            instruction(JUMP, 0, 0, left.len() as u32),
        ],
    };
    steps.extend(left);
    steps.extend(right);
    steps
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What the kernel would make of a call: the answer, and how many steps it took.
    pub fn run(program: &[sock_filter], number: u32, arch: u32, arguments: [u64; 6]) -> (u32, u32) {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0_u64.to_ne_bytes());
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let (mut at, mut value, mut steps) = (0_usize, 0_u32, 0);
        loop {
            let step = &program[at];
            steps += 1;
            at += 1;
            let mut branch = |holds: bool| at += usize::from(if holds { step.jt } else { step.jf });
            match step.code {
                0x20 => {
                    let place = step.k as usize;
                    value = u32::from_ne_bytes(data[place..place + 4].try_into().unwrap());
                }
                0x54 => value &= step.k,
                0x15 => branch(value == step.k),
                0x25 => branch(value > step.k),
                0x35 => branch(value >= step.k),
                0x05 => at += step.k as usize,
                0x06 => return (step.k, steps),
                code => panic!("code {code:#x}"),
            }
        }
    }

    #[test]
    fn far_jumps_are_taken() {
        let answers: BTreeMap<u32, Answer> =
            (0..2000).map(|number| (number, Answer::Return(number * 7))).collect();
        let rest = vec![
            instruction(LOAD, 0, 0, 4),
            instruction(0x15, 1, 0, 5),
            instruction(RETURN, 0, 0, 0),
            instruction(RETURN, 0, 0, 1),
        ];
        let program = program(&answers, 99, &rest);
        for number in 0..2000 {
            assert_eq!(run(&program, number, 5, [0; 6]).0, number * 7);
        }
        assert_eq!(run(&program, 2000, 5, [0; 6]).0, 99);
        assert_eq!(run(&program, 7, 6, [0; 6]).0, 0, "another architecture");
    }
}
