//! Maglev hashing (Eisenbud and others, "Maglev: a fast and reliable software network load balancer", NSDI 2016,
//! section 3.4), with weights as in Envoy.

use super::hash::{mix, pair};

/// Entries of a table; a prime, as in the paper and in Envoy.
pub const ENTRIES: usize = 65_537;

/// The greatest number of members. With more, some would have no entry.
pub const MOST_MEMBERS: usize = ENTRIES - 1;

/// The member of each entry: 128 KiB.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    entries: Box<[u16]>,
}

/// A member while the table is filled: its own permutation of all entries.
struct Permutation {
    member: u16,
    next: usize,
    skip: usize,
    weight: u64,
    credit: u64,
}

impl Table {
    /// The table of members, given by hash and weight. The same set in any order has the same table. `None` for an
    /// empty set, and for one that is too large.
    #[must_use]
    pub fn new(members: &[(u64, u32)]) -> Option<Self> {
        if members.len() > MOST_MEMBERS {
            return None;
        }
        let heaviest = members.iter().map(|(_, weight)| u64::from(*weight)).max().filter(|most| *most > 0)?;
        let mut order: Vec<_> = (0_u16..).zip(members).collect();
        order.sort_by_key(|(_, (hash, _))| *hash);
        let mut permutations: Vec<_> = order
            .into_iter()
            .filter(|(_, (_, weight))| *weight > 0)
            .map(|(member, &(hash, weight))| Permutation {
                member,
                next: below(pair(hash, 1), ENTRIES),
                skip: 1 + below(pair(hash, 2), ENTRIES - 1),
                weight: weight.into(),
                // Each member gets its first entry in the first round.
                credit: heaviest - u64::from(weight),
            })
            .collect();
        let mut entries: Vec<Option<u16>> = vec![None; ENTRIES];
        let mut free = ENTRIES;
        'fill: loop {
            for permutation in &mut permutations {
                permutation.credit += permutation.weight;
                if permutation.credit < heaviest {
                    continue;
                }
                permutation.credit -= heaviest;
                while entries[permutation.next].is_some() {
                    permutation.step();
                }
                entries[permutation.next] = Some(permutation.member);
                permutation.step();
                free -= 1;
                if free == 0 {
                    break 'fill;
                }
            }
        }
        Some(Self { entries: entries.into_iter().flatten().collect() })
    }

    /// The member for a key.
    #[must_use]
    pub fn pick(&self, key: u64) -> usize {
        self.entries[below(mix(key), ENTRIES)].into()
    }
}

impl Permutation {
    fn step(&mut self) {
        self.next += self.skip;
        if self.next >= ENTRIES {
            self.next -= ENTRIES;
        }
    }
}

fn below(hash: u64, bound: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "less than the bound")]
    let below = (hash % bound as u64) as usize;
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(count: u64) -> Vec<(u64, u32)> {
        (0..count).map(|number| (mix(number), 1)).collect()
    }

    fn counts(table: &Table, members: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        for entry in &table.entries {
            counts[usize::from(*entry)] += 1;
        }
        counts
    }

    #[test]
    fn equal_members_have_equal_parts() {
        for members in [1, 2, 3, 10, 100, 1_000] {
            let counts = counts(&Table::new(&set(members)).unwrap(), usize::try_from(members).unwrap());
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{members}: {least} to {most}");
        }
    }

    #[test]
    fn weights_are_exact_to_one_entry() {
        for weights in [vec![1, 2, 3], vec![90, 10], vec![1_000_000, 1], vec![7, 7, 1, 0, 400]] {
            let members: Vec<_> =
                weights.iter().enumerate().map(|(at, weight)| (mix(at as u64), *weight)).collect();
            let counts = counts(&Table::new(&members).unwrap(), weights.len());
            let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let fair = ENTRIES as u64 * u64::from(*weight) / sum;
                let (least, most) = (fair.saturating_sub(1), fair + 2);
                assert!((least..=most).contains(&(*count as u64)), "{counts:?} for {weights:?}");
                assert_eq!(*count == 0, *weight == 0, "{counts:?} for {weights:?}");
            }
        }
    }

    #[test]
    fn the_order_of_the_set_does_not_matter() {
        let members = [(mix(5), 3), (mix(6), 1), (mix(7), 2)];
        let turned = [members[2], members[0], members[1]];
        let (one, other) = (Table::new(&members).unwrap(), Table::new(&turned).unwrap());
        for key in 0..10_000 {
            assert_eq!(members[one.pick(key)], turned[other.pick(key)]);
        }
    }

    /// If one of n members leaves, its keys move, and few others: ideally 1/n of all keys.
    #[test]
    fn a_member_that_leaves_moves_little_else() {
        for count in [2_usize, 5, 10, 50] {
            let all = set(count as u64);
            let rest: Vec<_> = all.iter().copied().filter(|member| *member != all[0]).collect();
            let (before, after) = (Table::new(&all).unwrap(), Table::new(&rest).unwrap());
            let mut moved = 0;
            for (old, new) in before.entries.iter().zip(&after.entries) {
                let (old, new) = (all[usize::from(*old)], rest[usize::from(*new)]);
                moved += usize::from(old != all[0] && old != new);
            }
            // Fewer than the paper reports for tables of this size (section 5.3), since one member leaves at a time.
            assert!(moved * 100 <= ENTRIES, "{moved} entries of the others moved, of {count} members");
        }
    }

    #[test]
    fn a_set_without_weight_has_no_table() {
        assert_eq!(Table::new(&[]), None);
        assert_eq!(Table::new(&[(1, 0), (2, 0)]), None);
        assert_eq!(Table::new(&vec![(1, 1); MOST_MEMBERS + 1]), None);
    }

    #[test]
    fn a_table_costs_128_kib() {
        let table = Table::new(&set(3)).unwrap();
        assert_eq!(size_of_val(&*table.entries), 131_074);
    }
}
