package model

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"meshroute.io/meshroute/api/v1alpha1"
)

// ruleMatch is a match of a rule that can be used.
type ruleMatch struct {
	Match
	index int // in its rule
}

// matchesOf returns the matches of a rule, and a sentence for each that cannot
// be used.
func matchesOf(source *v1alpha1.ServiceRouteRule) (matches []ruleMatch, invalid []string) {
	if len(source.Matches) == 0 {
		return []ruleMatch{{Path: "/"}}, nil
	}
	matches = make([]ruleMatch, 0, len(source.Matches))
	for i := range source.Matches {
		match := matchOf(&source.Matches[i])
		if problem := match.problem(); problem != "" {
			invalid = append(invalid, fmt.Sprintf("rule %q: matches[%d].%s (the match is left out)", source.Name, i, problem))
			continue
		}
		matches = append(matches, ruleMatch{Match: match, index: i})
	}
	return matches, invalid
}

func matchOf(source *v1alpha1.RouteMatch) Match {
	match := Match{Path: "/", Method: string(valueOr(source.Method, ""))}
	if source.Path != nil {
		match.Path = cmp.Or(source.Path.Value, "/")
		switch source.Path.Type {
		case v1alpha1.PathMatchExact:
			match.Type = PathExact
		case v1alpha1.PathMatchRegularExpression:
			match.Type = PathRegex
		default:
		}
	}
	if match.Type == PathPrefix {
		// /api and /api/ are the same prefix.
		match.Path = cmp.Or(strings.TrimRight(match.Path, "/"), "/")
	}
	for _, header := range source.Headers {
		match.Headers = append(match.Headers, ValueMatch{
			Name: strings.ToLower(header.Name), Value: header.Value, Regex: header.Type == v1alpha1.ValueMatchRegularExpression,
		})
	}
	for _, param := range source.QueryParams {
		match.QueryParams = append(match.QueryParams, ValueMatch{
			Name: param.Name, Value: param.Value, Regex: param.Type == v1alpha1.ValueMatchRegularExpression,
		})
	}
	byName := func(a, b ValueMatch) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortFunc(match.Headers, byName)
	slices.SortFunc(match.QueryParams, byName)
	return match
}

// problem tells which part of a match Envoy would refuse; empty where none.
func (m Match) problem() string {
	if m.Type == PathRegex {
		if problem := regexProblem(m.Path); problem != "" {
			return "path.value " + problem
		}
	}
	for _, of := range []struct {
		name   string
		values []ValueMatch
	}{{"headers", m.Headers}, {"queryParams", m.QueryParams}} {
		for _, value := range of.values {
			if !value.Regex {
				continue
			}
			if problem := regexProblem(value.Value); problem != "" {
				return fmt.Sprintf("%s[%s].value %s", of.name, value.Name, problem)
			}
		}
	}
	return ""
}

// rankedRoute is a Route with what decides its place among others.
type rankedRoute struct {
	Route
	order int // oldest route first, then by rule and match
}

// compareRoutes puts the more specific match first, as Gateway API orders
// HTTPRoute matches: exact path, longer prefix, a method, more headers, more
// query parameters; then age and place in the route, which is the order of
// insertion. Regular expressions, whose place Gateway API leaves open, come
// before prefixes, the longer one first: behind them, a prefix "/" would take
// everything.
func compareRoutes(a, b rankedRoute) int {
	path := func(m Match) int {
		return slices.Index([]PathType{PathExact, PathRegex, PathPrefix}, m.Type)
	}
	method := func(m Match) int { return min(len(m.Method), 1) }
	return cmp.Or(
		cmp.Compare(path(a.Match), path(b.Match)),
		cmp.Compare(len(b.Match.Path), len(a.Match.Path)),
		cmp.Compare(method(b.Match), method(a.Match)),
		cmp.Compare(len(b.Match.Headers), len(a.Match.Headers)),
		cmp.Compare(len(b.Match.QueryParams), len(a.Match.QueryParams)),
		cmp.Compare(a.order, b.order),
	)
}

// key is the same for two matches that select the same requests.
func (m Match) key() string {
	var key strings.Builder
	switch m.Type {
	case PathExact:
		key.WriteByte('=')
	case PathRegex:
		key.WriteByte('~')
	case PathPrefix:
	}
	key.WriteString(m.Path)
	if m.Method != "" {
		key.WriteString("\n" + m.Method)
	}
	write := func(separator byte, values []ValueMatch) {
		for _, value := range values {
			key.WriteByte('\n')
			key.WriteByte(separator)
			key.WriteString(value.Name)
			if value.Regex {
				key.WriteByte('~')
			}
			key.WriteByte('=')
			key.WriteString(value.Value)
		}
	}
	write(':', m.Headers)
	write('?', m.QueryParams)
	return key.String()
}

func (m Match) describe(hostname string) string {
	var text strings.Builder
	if m.Method != "" {
		text.WriteString(m.Method + " ")
	}
	switch m.Type {
	case PathExact:
		text.WriteString(hostname + m.Path)
	case PathRegex:
		text.WriteString(hostname + " with a path like " + m.Path)
	case PathPrefix:
		text.WriteString(hostname + m.Path + " (prefix)")
	}
	conjunction := " with "
	if m.Type == PathRegex {
		conjunction = ", "
	}
	for _, of := range []struct {
		name   string
		values []ValueMatch
	}{{"header", m.Headers}, {"query parameter", m.QueryParams}} {
		for i, value := range of.values {
			if i > 0 {
				text.WriteString(", " + value.Name)
				continue
			}
			text.WriteString(conjunction + of.name + " " + value.Name)
			conjunction = " and "
		}
	}
	return text.String()
}
