"""Results on paper and on screen: charts, tables, one offline HTML file."""
