//! R3, R4 and R5.
use cluster_tests::storage::{cuts, damage, fails};

fn n(ci: u64) -> u64 {
    std::env::var("N").ok().and_then(|n| n.parse().ok()).unwrap_or(ci)
}
fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

#[test]
fn cuts_of_one_node() {
    let began = std::time::Instant::now();
    eprintln!("{:?} in {:?}", cuts::alone(seed(), n(100)).unwrap(), began.elapsed());
}

#[test]
fn cuts_of_three_nodes() {
    let began = std::time::Instant::now();
    eprintln!("{:?} in {:?}", cuts::together(seed(), n(20)).unwrap(), began.elapsed());
}

#[test]
fn cuts_of_a_reception() {
    let began = std::time::Instant::now();
    eprintln!("{:?} in {:?}", cuts::receiving(seed(), n(20)).unwrap(), began.elapsed());
}

#[test]
fn damage_of_one_node() {
    let began = std::time::Instant::now();
    eprintln!("{:#?} in {:?}", damage::alone(seed(), n(400)).unwrap(), began.elapsed());
}

#[test]
fn damage_of_one_of_three() {
    let began = std::time::Instant::now();
    eprintln!("{:#?} in {:?}", damage::one_of_three(seed(), n(30)).unwrap(), began.elapsed());
}

#[test]
fn failing_calls() {
    let began = std::time::Instant::now();
    eprintln!("{:#?} in {:?}", fails::calls(seed(), n(50)).unwrap(), began.elapsed());
}
