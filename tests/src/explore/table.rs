//! A map from 64-bit keys to 32-bit numbers by open addressing: 12 bytes an entry, since the visited set is what bounds
//! the number of states.

use super::fingerprint::scramble;

/// The number that marks a free place.
const FREE: u32 = u32::MAX;

/// See the module. Entries are never removed.
#[derive(Clone, Debug)]
pub struct Table {
    keys: Vec<u64>,
    numbers: Vec<u32>,
    count: usize,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::with_places(1 << 10)
    }

    fn with_places(places: usize) -> Self {
        Self {
            keys: vec![0; places],
            numbers: vec![FREE; places],
            count: 0,
        }
    }

    /// How many keys it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number of a key.
    #[must_use]
    pub fn find(&self, key: u64) -> Option<u32> {
        let number = self.numbers[self.place(key)];
        (number != FREE).then_some(number)
    }

    /// Enters a key unless it is there already; returns whether it is new.
    ///
    /// # Panics
    /// The number is the one that marks a free place.
    pub fn insert(&mut self, key: u64, number: u32) -> bool {
        assert!(number != FREE, "the highest number marks a free place");
        // At three quarters full a search still ends after a few steps.
        if self.count * 4 >= self.keys.len() * 3 {
            self.grow();
        }
        let place = self.place(key);
        if self.numbers[place] != FREE {
            return false;
        }
        self.keys[place] = key;
        self.numbers[place] = number;
        self.count += 1;
        true
    }

    /// Where the key lies, or would lie. There is always a free place.
    fn place(&self, key: u64) -> usize {
        let mask = self.keys.len() - 1;
        let mut place = usize::try_from(scramble(key) & mask as u64).unwrap_or(0);
        while self.numbers[place] != FREE && self.keys[place] != key {
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        let mut larger = Self::with_places(self.keys.len() * 2);
        for (key, number) in self.keys.iter().zip(&self.numbers) {
            if *number != FREE {
                larger.insert(*key, *number);
            }
        }
        *self = larger;
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Table;
    use std::collections::BTreeMap;

    /// Against the ordered map, over keys that collide in their low bits.
    #[test]
    fn a_table_holds_what_a_map_holds() {
        let mut table = Table::new();
        let mut map = BTreeMap::new();
        for number in 0..20_000u32 {
            let key = u64::from(number % 7_000) << 40;
            let is_new = map.insert(key, number).is_none();
            if !is_new {
                let first = number % 7_000;
                map.insert(key, first);
            }
            assert_eq!(table.insert(key, number), is_new);
        }
        assert_eq!(table.len(), map.len());
        assert!(map.iter().all(|(key, number)| table.find(*key) == Some(*number)));
        assert_eq!(table.find(1), None);
    }
}
