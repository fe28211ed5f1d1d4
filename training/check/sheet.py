from matplotlib.figure import Figure
def draw_sheet(report): return Figure()
