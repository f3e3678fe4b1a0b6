//! R3, R4 and R5.
use cluster_tests::storage::cuts;

#[test]
fn cuts_of_one_node() {
    let began = std::time::Instant::now();
    eprintln!("{:?} in {:?}", cuts::alone(1, 100).unwrap(), began.elapsed());
}

#[test]
fn cuts_of_three_nodes() {
    let began = std::time::Instant::now();
    eprintln!("{:?} in {:?}", cuts::together(1, 20).unwrap(), began.elapsed());
}

#[test]
fn cuts_of_a_reception() {
    let began = std::time::Instant::now();
    eprintln!("{:?} in {:?}", cuts::receiving(1, 20).unwrap(), began.elapsed());
}
