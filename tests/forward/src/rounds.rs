//! Rounds that take turns, and the figures that come of them.

use std::collections::BTreeMap;

use crate::contender::Contender;
use crate::report::{Better, Figure, Point};
use crate::statistics::{estimate, ratio};

/// What a figure is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) how: &'static str,
}

/// One value a round, by contender.
#[derive(Debug, Default)]
pub(crate) struct Values(BTreeMap<&'static str, BTreeMap<Contender, Vec<f64>>>);

impl Values {
    pub(crate) fn add(&mut self, id: &'static str, contender: Contender, value: Option<f64>) {
        self.0.entry(id).or_default().entry(contender).or_default().extend(value);
    }

    /// The points of one figure at one place of its x axis.
    pub(crate) fn points(&self, id: &str, x: f64) -> Vec<Point> {
        let Some(by_contender) = self.0.get(id) else { return Vec::new() };
        let straight = by_contender.get(&Contender::Straight);
        by_contender
            .iter()
            .filter_map(|(contender, values)| {
                Some(Point {
                    contender: *contender,
                    x,
                    estimate: estimate(values)?,
                    to_straight: straight.and_then(|straight| ratio(values, straight)),
                    beyond: false,
                })
            })
            .collect()
    }
}

/// Figures that fill up as places of the x axis are measured.
#[derive(Debug)]
pub(crate) struct Figures {
    run: String,
    part: &'static str,
    x: String,
    categories: Vec<String>,
    /// Before every id, after every title.
    about: (&'static str, &'static str),
    figures: Vec<Figure>,
}

impl Figures {
    /// Over counts of `x`.
    pub(crate) fn over(run: &str, part: &'static str, x: &str) -> Self {
        Self {
            run: run.to_owned(),
            part,
            x: x.to_owned(),
            categories: Vec::new(),
            about: ("", ""),
            figures: Vec::new(),
        }
    }

    /// One place a name.
    pub(crate) fn named(run: &str, part: &'static str, categories: Vec<String>) -> Self {
        Self { run: run.to_owned(), part, x: String::new(), categories, about: ("", ""), figures: Vec::new() }
    }

    /// The same subjects seen from elsewhere: what goes before each id and after each title.
    pub(crate) fn about(mut self, id: &'static str, title: &'static str) -> Self {
        self.about = (id, title);
        self
    }

    pub(crate) fn add(&mut self, subject: &Subject, points: Vec<Point>) {
        if points.is_empty() {
            return;
        }
        let id = format!("{}{}", self.about.0, subject.id);
        if let Some(figure) = self.figures.iter_mut().find(|figure| figure.id == id) {
            figure.points.extend(points);
            return;
        }
        self.figures.push(Figure {
            run: self.run.clone(),
            part: self.part.to_owned(),
            id,
            title: format!("{}{}", subject.title, self.about.1),
            unit: subject.unit.to_owned(),
            better: subject.better,
            x: self.x.clone(),
            categories: self.categories.clone(),
            how: subject.how.to_owned(),
            points,
        });
    }

    pub(crate) fn into_figures(self) -> Vec<Figure> {
        self.figures
    }
}

/// The order of `count` contenders in a round: each is first, second … equally often.
pub(crate) fn order(count: usize, round: usize) -> Vec<usize> {
    (0..count).map(|place| (place + round) % count.max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_first_equally_often() {
        let firsts: Vec<usize> = (0..6).map(|round| order(3, round)[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 0, 1, 2]);
        assert_eq!(order(3, 1), [1, 2, 0]);
        assert_eq!(order(0, 1), Vec::<usize>::new());
    }

    #[test]
    fn points_are_compared_with_straight() {
        let mut values = Values::default();
        for round in [10.0, 20.0] {
            values.add("figure", Contender::Straight, Some(round));
            values.add("figure", Contender::Pith, Some(round * 1.5));
        }
        let points = values.points("figure", 7.0);
        let pith = points.iter().find(|point| point.contender == Contender::Pith).expect("it was measured");
        assert_eq!((pith.x, pith.estimate.median), (7.0, 22.5));
        assert_eq!(pith.to_straight.map(|ratio| ratio.median), Some(1.5));
        assert!(values.points("another", 7.0).is_empty());
    }
}
